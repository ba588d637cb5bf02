"""The ZeroMQ door for clients of 2016; knows the wire dialect and the manager, nothing beneath it."""
