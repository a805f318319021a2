"""Baking a prompt into a chat template. Pure: text in, text out.

A version owns its prompt, and the gateway never edits messages; so the prompt becomes part of the template that the
engine applies to every conversation.
"""

from __future__ import annotations

import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from registry.errors import InvalidPrompt

_SAMPLE = [{"role": "user", "content": "Hello"}]


class _Generation(jinja2.ext.Extension):
    """Reads the `{% generation %}` blocks that training templates carry; they render as what they hold."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        """Parse up to `{% endgeneration %}`."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def prepend_system_prompt(template: str, prompt: str) -> str:
    """Put a system prompt before every conversation that does not bring its own.

    The text is written as a string literal whose escapes JSON and jinja share, so any text survives, braces and
    quotes included. `set` inside `if` reaches the rest of a template, since jinja's `if` opens no scope. The closing
    `{{- '' }}` keeps the base template's first line as it is (`trim_blocks` would eat its newline).
    """
    literal = json.dumps(prompt, ensure_ascii=False)
    return (
        "{%- if not messages or messages[0]['role'] != 'system' -%}"
        "{%- set messages = [{'role': 'system', 'content': " + literal + "}] + messages -%}"
        "{%- endif -%}{{- '' }}" + template
    )


def check_template(template: str) -> None:
    """Check that a template can be compiled.

    Raises:
        InvalidPrompt: it cannot; names the line.
    """
    try:
        _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InvalidPrompt(
            f"the chat template has an error in line {error.lineno}: {error.message}; mend it and try again"
        ) from error


def check_prompt_is_used(template: str, prompt: str) -> None:
    """Check, by rendering a sample conversation, that a baked prompt reaches the model.

    Some templates refuse a system role and some ignore it; a prompt that nobody sees must not become a version.

    Raises:
        InvalidPrompt: the template refuses or drops the prompt.
    """
    check_template(template)
    way_out = "give a whole template instead, as a file that ends in .jinja"
    try:
        text = render(template, _SAMPLE)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError) as error:
        raise InvalidPrompt(f"the model's chat template refuses a system prompt ({error}); {way_out}") from error
    if prompt not in text:
        raise InvalidPrompt(f"the model's chat template ignores system prompts; {way_out}")


def render(template: str, messages: list[dict[str, Any]], **variables: object) -> str:
    """Render a template the way transformers does, in a sandbox."""
    return _environment().from_string(template).render(messages=messages, add_generation_prompt=True, **variables)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise, strftime_now=lambda _format: "", bos_token="", eos_token="", unk_token="", pad_token=""
    )
    return environment


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None, **_: object) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
