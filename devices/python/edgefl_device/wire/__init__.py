"""A device on the wire, without I/O: what it hears, fetches, offers, and what of that must survive a restart."""
