"""The administration's query language: bounds, schema, and execution without a thread, an event loop or a query per row."""
