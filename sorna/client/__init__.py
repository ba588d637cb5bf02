"""The command line and the small asynchronous API client beneath it; talks HTTP to any Sorna."""
