"""`AnswerFormats`: how one model writes; makes the parser, and where one is needed the grammar, of each answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bestiary.api.hooks import TextParser
from bestiary.api.text_formats import ReasoningFormat, ToolFormat
from bestiary.serve.text.tool_grammar import can_free_calls, forced_calls, free_calls
from bestiary.serve.text.tools import Tool

from .answer import AnswerParser
from .families import HERMES
from .reasoning import ReasoningParser
from .template_facts import Arguments
from .tool_calls import ToolCallParser

ParserClass: TypeAlias = Callable[..., TextParser]


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """How a model writes, chosen once; makes the parser of each answer.

    Attributes:
        tools, reasoning: a format, a class of parsers, or None where nothing is looked for.
        arguments: how the chat template takes the arguments of earlier calls (`check_conversation`).
        shows_tools: the chat template tells the model of a request's tools.
    """

    tools: ToolFormat | ParserClass | None = None
    reasoning: ReasoningFormat | ParserClass | None = None
    arguments: Arguments = "object"
    shows_tools: bool = False

    @property
    def keeps_strict(self) -> bool:
        """Whether calls that a model makes of its own accord can be held to the schema of a strict tool."""
        reasoning = self.reasoning if isinstance(self.reasoning, ReasoningFormat) else None
        return isinstance(self.tools, ToolFormat) and can_free_calls(self.tools, reasoning)

    @property
    def forced(self) -> ToolFormat:
        """What a call is written in that a grammar forces: any will do where the model has none of its own."""
        return self.tools if isinstance(self.tools, ToolFormat) else HERMES

    def parser(
        self, prompt: str, tools: Sequence[Tool] = (), *, forced: bool = False, continued: str = ""
    ) -> AnswerParser:
        """A parser for one answer.

        Args:
            prompt: the text that the answer follows; its end may have opened the reasoning.
            tools: those that may be called; without any, calls are content. forced: a grammar makes the answer a call.
            continued: the beginning of the answer, where a request brought it (`continue_final_message`).
        """
        reader: TextParser | None = None
        if tools:
            schemas = {tool.name: tool.parameters for tool in tools}
            form = self.forced if forced else self.tools
            reader = ToolCallParser(form, schemas) if isinstance(form, ToolFormat) else form and form(tools=schemas)
        return AnswerParser(self._reasoning_parser(prompt, continued), reader)

    def _reasoning_parser(self, prompt: str, continued: str) -> TextParser | None:
        if self.reasoning is None:
            return None
        if isinstance(self.reasoning, ReasoningFormat):
            return ReasoningParser(self.reasoning, started=begins_inside(self.reasoning, prompt, continued))
        return self.reasoning(prompt=prompt)

    def grammar(
        self,
        prompt: str,
        tools: Sequence[Tool],
        *,
        forced: bool = False,
        several: bool = True,
        continued: str = "",
        special: Mapping[str, int] | None = None,
    ) -> str | None:
        """What an answer must look like, in Lark; None: whatever it likes.

        Args:
            forced: it is a call of one of `tools`, or of several one after another (`several`); otherwise it may call,
                and does so as the schema says where a tool is strict. The others are those of `parser`.
            special: the vocabulary's special tokens (`Tokenizer.special_tokens`).

        Raises:
            RequestError: BAD_SCHEMA where this model's calls cannot keep to a tool's schema.
        """
        reasoning = self.reasoning if isinstance(self.reasoning, ReasoningFormat) else None
        started = reasoning is not None and begins_inside(reasoning, prompt, continued)
        if forced:
            return forced_calls(
                self.forced, tools, several=several, special=special, reasoning=reasoning, started=started
            )
        if not isinstance(self.tools, ToolFormat):
            return None
        return free_calls(self.tools, tools, special=special, reasoning=reasoning, started=started)

    def marks(self) -> tuple[str, ...]:
        """All marks. Some may be special tokens, which must stay in the text for a parser to see them
        (`SamplingParams.shown_token_ids`, `Tokenizer.special_ids_in`)."""
        found: list[str] = []
        if isinstance(self.tools, ToolFormat):
            shape = self.tools.call
            names = ("opening", "between", "closing", "name_closing", "key_opening", "key_closing", "value_closing")
            found += [*self.tools.opening, self.tools.closing, *(getattr(shape, name, "") for name in names)]
        if isinstance(self.reasoning, ReasoningFormat):
            found += [*self.reasoning.opening, *self.reasoning.closing, *self.reasoning.dropped]
        return tuple(dict.fromkeys(mark for mark in found if mark))


def begins_inside(form: ReasoningFormat, prompt: str, continued: str = "") -> bool:
    """Whether an answer begins in the midst of reasoning: the prompt's last words open it."""
    if any(prompt.rstrip().endswith(mark) for mark in form.opening):
        return True
    last_opened = max(continued.rfind(mark) for mark in form.opening)
    return last_opened > max(continued.rfind(mark) for mark in form.closing)
