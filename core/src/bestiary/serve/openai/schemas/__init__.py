"""What each endpoint takes and gives, as strict pydantic models: validation and `/openapi.json` read the same lines."""
