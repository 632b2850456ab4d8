"""The stateless part of OpenAI's Responses interface, as a translation over chat completions.

`requests` turns a request into one of chat completions, `answers` turns the answer into a response,
and `events` the chunks of a streamed answer into the events of a response. Bodies are JSON objects
whose shape was checked. So every engine that can chat serves it.
"""
