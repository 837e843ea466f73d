"""featherweight makes large language models light."""
