# An aggregator. From the repository's root: docker build -f docker/aggregator.Dockerfile -t edgefl-aggregator .
# The folder of the run file is mounted at /run-folder, writable for user 1000: run directories are made there.
FROM python:3.12-slim AS build
COPY . /source
RUN python -m venv /opt/edgefl && /opt/edgefl/bin/pip install --no-cache-dir --no-compile '/source[aggregator]'

FROM python:3.12-slim
COPY --from=build /opt/edgefl /opt/edgefl
RUN useradd --uid 1000 --no-create-home edgefl && install -d -o edgefl -m 700 /run-folder
USER edgefl
WORKDIR /run-folder
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /run-folder
STOPSIGNAL SIGTERM
# With --restart on-failure it goes on with the run that was interrupted, and stays down when that is over.
ENTRYPOINT ["/opt/edgefl/bin/edgefl", "aggregate", "--resume", "auto"]
