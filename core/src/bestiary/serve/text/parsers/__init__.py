"""Tool calls and reasoning out of an answer's text, while it arrives. Text stays text: nothing is evaluated.

    families.py     what is known of families: rows of `ToolFormat` and `ReasoningFormat`
    choose.py       which rows a model needs, by name or from its chat template (`template_facts.py`)
    formats.py      `AnswerFormats`: those of one model, which make the parser and the grammar of each answer
    answer.py       `AnswerParser`: reasoning, then tool calls, of one answer
    tool_calls.py   the machine that reads calls in any format; `shapes.py` reads one call, `literals.py` one value,
                    and `schemas.py` says what a value in plain text is
    reasoning.py    the same for reasoning
    reader.py       the text as a parser sees it

Every parser is a `TextParser` (`bestiary.api.hooks`): the sum of its deltas depends on the text alone, not on how it
was cut, and it takes time linear in its length, because no character is looked at again once it was read.
"""
