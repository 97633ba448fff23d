"""Reasoning and tool calls: how the model writes them, what a request asks of it, and how its answers are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError
from bestiary.serve.text.enforceable import enforced_patterns
from bestiary.serve.text.parsers.answer import AnswerParser
from bestiary.serve.text.parsers.choose import choose_formats
from bestiary.serve.text.parsers.formats import AnswerFormats
from bestiary.serve.text.tools import Tool, ToolChoice, check_tool_choice, check_tools

from .options import ServeOptions
from .structured import Form

if TYPE_CHECKING:
    from bestiary.engine.arguments import EngineArgs
    from bestiary.serve.text.tokenizer import Tokenizer


def read_formats(args: EngineArgs, tokenizer: Tokenizer | None, options: ServeOptions) -> AnswerFormats:
    """How the model writes, by the options' names or by what its chat template does, which takes a moment to find out.

    Raises:
        UsageError: nobody offers a parser of that name.
    """
    from bestiary.api.hook_manager import HookManager
    from bestiary.api.registry import ModelRegistry
    from bestiary.serve.text.template_process import TemplateProcess

    template = options.chat_template or (None if tokenizer is None else tokenizer.chat_template)
    hooks = HookManager(ModelRegistry.installation, args.plugin).load()
    with closing(TemplateProcess()) as process:

        def render(messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
            ends = {} if tokenizer is None else {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
            return process.render(template or "", messages, **ends, **variables)

        return choose_formats(
            hooks, template, render,
            tool_call_parser=options.tool_call_parser, reasoning_parser=options.reasoning_parser,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tooling:
    """The tools of one request, and how its answers are read.

    Attributes:
        tools: those it brings. choice: whether they may, must or must not be called.
    """

    formats: AnswerFormats
    tools: tuple[Tool, ...]
    choice: ToolChoice

    @classmethod
    def of(cls, formats: AnswerFormats, tools: Any, choice: Any) -> Tooling:
        """From a request's fields, as data in the form of chat completions. Raises as the checks of `text.tools`."""
        checked = check_tools(tools)
        return cls(formats, checked, check_tool_choice(choice, checked))

    @property
    def shown(self) -> list[dict[str, Any]] | None:
        """What the chat template is given."""
        return [tool.shown() for tool in self.tools] if self.callable else None

    @property
    def callable(self) -> tuple[Tool, ...]:
        """Those that may be called."""
        if self.choice.mode == "none":
            return ()
        return tuple(tool for tool in self.tools if self.choice.name in (None, tool.name))

    @property
    def forced(self) -> bool:
        return self.choice.mode == "required"

    @property
    def plain(self) -> bool:
        """Whether nothing is looked for in the answers: all of their text is content."""
        return self.formats.reasoning is None and not self.callable

    def parser(self, prompt: str, continued: str = "") -> AnswerParser:
        """For one answer. continued: the beginning of it that the request brought."""
        return self.formats.parser(prompt, self.callable, forced=self.forced, continued=continued)

    def form(
        self, stated: Form | None, prompt: str, special: Mapping[str, int], *, several: bool = True, continued: str = ""
    ) -> Form | None:
        """What an answer must look like: as `stated`, or so that its calls are what the tools' schemas say.

        Args:
            special: the vocabulary's special tokens. several: more than one call may be made.

        Raises:
            RequestError: a form is stated, and a call is forced, which is none.
        """
        if stated is not None and self.forced:
            raise RequestError(
                "an answer can have one form", field="tool_choice", limit=f"not together with {stated.field}"
            )
        if stated is not None or not self.callable:
            return stated
        grammar = self.formats.grammar(
            prompt, self.callable, forced=self.forced, several=several, continued=continued, special=special
        )
        if grammar is None:
            return None
        patterns = {place: each for tool in self.callable for place, each in enforced_patterns(tool).items()}
        return Form.of("tools", {"grammar": grammar}, patterns)

    def warnings(self) -> list[str]:
        found = []
        if self.callable and not self.formats.shows_tools:
            found.append("the chat template does not tell the model of tools")
        if any(tool.strict for tool in self.callable) and not self.forced and not self.formats.keeps_strict:
            found.append("strict cannot be enforced in this model's calls unless tool_choice demands one")
        return found
