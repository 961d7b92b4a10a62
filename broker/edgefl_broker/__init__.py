"""An MQTT broker for this machine: `with edgefl_broker.start() as broker: connect(broker.url)`.

A real broker as a child process, on loopback, that dies with us. For other machines deploy one with TLS and an
access list: see broker/mosquitto/.
"""

from edgefl_broker.running import RunningBroker, start

__all__ = ["RunningBroker", "start"]
