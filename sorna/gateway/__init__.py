"""The HTTP door: REST for clients of 2016 and later; knows HTTP and the manager, nothing beneath it."""
