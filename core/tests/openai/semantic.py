"""What no schema can say of a request, so that a refusal of a well-formed one may be right. (It imports nothing: the
suite that calls a real server from another environment reads it too.)"""

CODES = {
    "context_length_exceeded", "NOT_ALLOWED", "BAD_MESSAGES", "BAD_TOOLS", "BAD_TOOL_CHOICE", "BAD_SCHEMA",
    "BAD_REGEX", "TEMPLATE_ERROR", "TEMPLATE_LIMIT", "GRAMMAR_LIMIT", "NOTHING_TO_DRAW", "TOKEN_OUT_OF_RANGE",
    "LORA_PATH",
}  # fmt: skip
"""That a prompt fits, that a call was made before it is answered, that a text is a grammar."""
TOGETHER = {"n", "min_tokens", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
            "response_format", "response_format.json_schema.schema", "response_format.regex", "text.format.schema",
            "response_format.grammar", "tool_choice", "continue_final_message", "stop"}  # fmt: skip
"""Fields that are refused for what stands in others."""
