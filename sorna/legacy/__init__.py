"""The ZeroMQ door: what programs of 2016 speak, with today's manager behind it."""
