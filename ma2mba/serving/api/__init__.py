"""The HTTP interface: OpenAI's routes, `/v1/videos`, `/health` and `/metrics`."""
