"""OpenAI's fields that are not supported.

They are told apart from names that nobody knows: who moves over should not look for a typing error.
Null changes nothing and is what absence is: some clients write every field that they know.
"""

CHAT_FIELDS = frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "moderation",
        "prediction",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "verbosity",
        "web_search_options",
    }
)
COMPLETION_FIELDS = frozenset({"best_of", "suffix"})
JOB_FIELDS = frozenset({"integrations"})
RESPONSE_FIELDS = frozenset(
    {
        "access_programs",
        "background_options",
        "context_management",
        "conversation",
        "image",
        "max_tool_calls",
        "moderation",
        "previous_response_id",
        "prompt",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
    }
)
RESPONSE_TEXT_FIELDS = frozenset({"verbosity"})

# Of answers that come back as history. The client writes null for what an answer has not.
ASSISTANT_FIELDS = frozenset(
    {
        "annotations",
        "audio",
        "function_call",
        "reasoning",  # This and the next are vLLM's.
        "reasoning_content",
    }
)
RESPONSE_MESSAGE_FIELDS = frozenset({"phase"})
# The client calls `async` by another name in Python, which is what its objects dump.
RESPONSE_CALL_FIELDS = frozenset({"async", "async_", "caller", "namespace"})
