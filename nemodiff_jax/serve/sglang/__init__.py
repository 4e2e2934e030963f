"""SGLang's native protocol: requests as jobs, events as answers."""
