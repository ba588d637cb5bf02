"""The manager's view of its agents: who lives, how to call them, and the messages both ends share."""
