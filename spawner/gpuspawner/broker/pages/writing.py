"""Pages with forms: what is sent is confirmed, made through the audit log, and its result shown on the page.

Forms work without a script: a change that ends something is asked back on a page of its own, and each change
answers with a redirect, so that reloading sends nothing again. The result travels in a signed cookie. A
refused form is answered with the page itself and the refusal's status: its fields have what was typed.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NoReturn

from tornado.web import HTTPError

from ...core.errors import Fault, Refusal
from ..api.access import Reach
from ..api.public.base import refusal_of, shortened
from ..leases.audit import Answer, Asked, Audit
from .base import PageHandler

_COOKIE = "gpuspawner-said"
_MOST_SAID = 1500
"""Characters of a result that fit into a cookie with its signature."""


@dataclass(frozen=True, slots=True)
class Said:
    """The result of a change: `good` if all of it worked."""

    text: str
    good: bool = True


@dataclass(frozen=True, slots=True)
class Typed:
    """What a refused form said, by field; empty if none was refused."""

    values: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def form(self, *does: str, **same: str) -> dict[str, str]:
        """The fields of the refused form, if it is one that does this with these values; else none."""
        said = {name: texts[-1] for name, texts in self.values.items()}
        fits = said.get("do") in does and all(said.get(name) == text for name, text in same.items())
        return said if fits else {}

    def marked(self, name: str, text: str) -> bool:
        """Whether the refused form had this box marked."""
        return text in self.values.get(name, ())


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked back before a change: the form is sent again with `values`, and that it is confirmed."""

    title: str
    text: str
    button: str
    values: Mapping[str, str | list[str]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Writing:
    """A change that a form asks for; `reach` says for which users and groups its sender may make changes."""

    reach: Reach
    action: str
    subject: str
    groups: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)


class WritingPage(PageHandler):
    """A page with forms. `audit` records each change; `do` in a form says which one it is."""

    audit: Audit
    confirm_template: ClassVar[str] = "confirm.html"
    _refused: Said | None = None
    _typed = Typed()

    @abstractmethod
    async def carry_out(self, what: str, *path: str) -> Said | Question:
        """Makes the change `what`, or asks back. Raises Refusal, Fault, HTTPError 400 for an unknown one."""

    async def post(self, *path: str) -> None:
        """Makes the change, and shows the page again with its result."""
        what = self.get_body_argument("do", "")
        if not self.may_see(self.viewer):
            reach, action = self.viewer.admin, shortened(what) or "form"
            await self._forbid(Writing(reach, action, f"page:{shortened(self.page_name())}"))
        try:
            said = await self.carry_out(what, *path)
        except (Refusal, Fault) as error:
            await self._show_refused(refusal_of(error), *path)
            return
        if isinstance(said, Question):
            question = replace(said, reason=self.why())
            page = {"simulated": False, "question": question, "back": self.request.path}
            self.finish(self.site.look.render(self.confirm_template, page=page, **self.namespace()))
            return
        text = json.dumps({"text": said.text[:_MOST_SAID], "good": said.good})
        self.set_secure_cookie(_COOKIE, text, expires_days=None, path=self.site.prefix, httponly=True)
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(f"{self.request.path}{query}", status=303)  # type: ignore[no-untyped-call]

    async def _show_refused(self, refusal: Refusal, *path: str) -> None:
        """Shows the page with the refusal, and what was typed in the form."""
        names = self.request.body_arguments.keys() - {"_xsrf", "confirmed"}
        self._typed = Typed({name: self.get_body_arguments(name) for name in names})
        self._refused = Said(refusal.message, good=False)
        self.set_status(refusal.status)
        await self.show(self.template, *path)

    async def write_down(self, writing: Writing, do: Callable[[], Awaitable[Said]]) -> Said:
        """Makes a change with `do`, through the audit log. Raises HTTPError 403 without the right to it."""
        if not writing.reach.covers_each(writing.groups):
            await self._forbid(writing)
        result: list[Said] = []

        async def carry_out() -> Answer:
            result.append(await do())
            return Answer(sentence=result[0].text)

        await self.audit.write(self._asked(writing), carry_out)
        return result[0]

    async def _forbid(self, writing: Writing) -> NoReturn:
        """Records that it was tried. Raises HTTPError 403."""
        await self.audit.refuse(self._asked(writing), self.sentence(403))
        raise HTTPError(403, "%s may not: %s %s", self.viewer.author, writing.action, writing.subject)

    def _asked(self, writing: Writing) -> Asked:
        return Asked(
            author=self.viewer.author,
            via="page",
            action=writing.action,
            subject=writing.subject,
            groups=writing.groups,
            document=writing.document,
            reason=self.why(),
        )

    def why(self) -> str:
        """The reason that the form gives, for the audit log."""
        return " ".join(self.get_body_argument("reason", "").split())[:255]

    @property
    def confirmed(self) -> bool:
        """Whether the sender has answered the question."""
        return self.get_body_argument("confirmed", "") == "yes"

    def said(self) -> Said | None:
        """The result of the last change, once; the live part, which a script fetches, leaves it alone."""
        if self._refused is not None:
            return self._refused
        sent = self.get_secure_cookie(_COOKIE) if self.request.path == self.page_path() else None
        if sent is None or self.request.method != "GET":
            return None
        self.clear_cookie(_COOKIE, path=self.site.prefix)
        values = json.loads(sent)
        return Said(values["text"], values["good"])

    def namespace(self) -> dict[str, Any]:
        """With the result of the last change, and what a refused form said."""
        return {**super().namespace(), "said": self.said(), "typed": self._typed}
