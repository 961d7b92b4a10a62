# A device. From the repository's root: docker build -f docker/device.Dockerfile -t edgefl-device .
# Its data are mounted at /data, readable for user 1000; /state is what must survive. EDGEFL_BROKER says where the broker is.
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /opt/edgefl && /opt/edgefl/bin/pip install --no-cache-dir --no-compile '/source[device]'

FROM python:3.12-slim
COPY --from=build /opt/edgefl /opt/edgefl
RUN useradd --uid 1000 --no-create-home edgefl && install -d -o edgefl -m 700 /state
USER edgefl
ENV EDGEFL_STATE=/state PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /state
STOPSIGNAL SIGTERM
# No shell between docker and edgefl, which leaves politely when it is told to stop.
ENTRYPOINT ["/opt/edgefl/bin/edgefl", "device", "--forever"]
