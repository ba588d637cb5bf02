"""What runs inside a kernel, from the standard library alone; may import nothing else of Sorna."""
