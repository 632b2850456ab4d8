"""Wire types, in OpenAI's words. Requests refuse what they do not know; responses are complete."""
