"""The one decision maker; knows no HTTP and no ZeroMQ, and reaches everything through its own Protocols."""
