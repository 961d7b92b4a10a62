"""The iotcore broker's process: `python -m edgefl_broker.iotcore_child CONFIG`; ends when standard input closes.

The parent holds the other end of standard input and never writes, so its death, however sudden, ends us too.
"""

import logging
import os
import sys
import threading
from importlib.metadata import version


def main(config: str) -> None:
    """Serve the rumqttd configuration file `config` for ever."""
    logging.basicConfig(stream=sys.stderr, level="INFO", format="%(levelname)s %(name)s: %(message)s")
    # The router logs every packet as an ERROR; only the listeners' own messages tell something.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    logging.getLogger("rumqttd.server").setLevel(logging.INFO)
    logging.getLogger("tracing").setLevel(logging.CRITICAL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()

    from iotcore import IotCoreBroker

    print("iotcore version", version("iotcore"), file=sys.stderr, flush=True)
    IotCoreBroker(config_path=config).run_forever()


def _exit_with_parent() -> None:
    os.read(0, 1)  # returns at the end of file; `sys.stdin` would hold a lock that the interpreter needs to exit
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
