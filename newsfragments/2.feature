One command runs Sorna: private PostgreSQL and Redis, a local agent, and code in isolated kernels over the REST interface of versions v1, v2 and v3.
