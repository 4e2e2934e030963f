"""OpenAI's protocol: requests as jobs, events as answers."""
