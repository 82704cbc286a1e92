"""What a worker on the `process` target may be. Loads pydantic only, so that reading a template loads no SDK."""
