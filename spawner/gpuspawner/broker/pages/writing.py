"""Pages with forms: what is sent is confirmed, made through the audit log, and its result shown on the page.

Forms work without a script: a change that ends something is asked back on a page of its own, and each change
answers with a redirect, so that reloading sends nothing again. The result travels in a signed cookie.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tornado.web import HTTPError

from ...core.errors import Fault, Refusal
from ..api.access import Reach
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
class Question:
    """What is asked back before a change: the form is sent again with `values`, and that it is confirmed."""

    title: str
    text: str
    button: str
    values: Mapping[str, str | list[str]] = field(default_factory=dict)
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Writing:
    """A change that a form asks for; `reach` says for which users and groups its sender may make changes."""

    reach: Reach
    action: str
    subject: str
    groups: tuple[str, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)
    reason: str = ""


class WritingPage(PageHandler):
    """A page with forms. `audit` records each change; `do` in a form says which one it is."""

    audit: Audit
    confirm_template: ClassVar[str] = "confirm.html"

    @abstractmethod
    async def carry_out(self, what: str, *path: str) -> Said | Question:
        """Makes the change `what`, or asks back. Raises Refusal, Fault, HTTPError 400 for an unknown one."""

    async def post(self, *path: str) -> None:
        """Makes the change, and shows the page again with its result."""
        if not self.may_see(self.viewer):
            raise HTTPError(403, "the page %s is not for %s", self.address, self.viewer.name)
        try:
            said = await self.carry_out(self.get_body_argument("do", ""), *path)
        except Refusal as refusal:
            said = Said(refusal.message, good=False)
        except Fault as fault:
            said = Said(str(fault), good=False)
        if isinstance(said, Question):
            page = {"simulated": False, "question": said, "back": self.request.path}
            self.finish(self.site.look.render(self.confirm_template, page=page, **self.namespace()))
            return
        text = json.dumps({"text": said.text[:_MOST_SAID], "good": said.good})
        self.set_secure_cookie(_COOKIE, text, expires_days=None, path=self.site.prefix, httponly=True)
        query = f"?{self.request.query}" if self.request.query else ""
        self.redirect(f"{self.request.path}{query}", status=303)  # type: ignore[no-untyped-call]

    async def write_down(self, writing: Writing, do: Callable[[], Awaitable[Said]]) -> Said:
        """Makes a change with `do`, through the audit log. Raises HTTPError 403 without the right to it."""
        allowed = writing.reach.covers_each(writing.groups)
        if not allowed:
            raise HTTPError(403, "%s may not: %s %s", self.viewer.author, writing.action, writing.subject)
        result: list[Said] = []

        async def carry_out() -> Answer:
            result.append(await do())
            return Answer(sentence=result[0].text)

        await self.audit.write(
            Asked(
                author=self.viewer.author,
                via="page",
                action=writing.action,
                subject=writing.subject,
                groups=writing.groups,
                document=writing.document,
                reason=writing.reason,
            ),
            carry_out,
        )
        return result[0]

    @property
    def confirmed(self) -> bool:
        """Whether the sender has answered the question."""
        return self.get_body_argument("confirmed", "") == "yes"

    def said(self) -> Said | None:
        """The result of the last change, once; the live part, which a script fetches, leaves it alone."""
        sent = self.get_secure_cookie(_COOKIE) if self.request.path == self.page_path() else None
        if sent is None or self.request.method != "GET":
            return None
        self.clear_cookie(_COOKIE, path=self.site.prefix)
        values = json.loads(sent)
        return Said(values["text"], values["good"])

    def namespace(self) -> dict[str, Any]:
        """With the result of the last change."""
        return {**super().namespace(), "said": self.said()}
