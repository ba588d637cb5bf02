"""What is alive right now, in Redis; everything here may be lost and is rebuilt."""
