"""The page of servers that the hub doesn't know: who sees it, who ends one, and what is asked back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from gpuspawner.broker.leases.audit import Audit
from gpuspawner.broker.ledger import Ledger, Result, Search
from gpuspawner.broker.pages.unknown.handlers import unknown_pages

from tests.unit.broker.test_pages_handlers import FakeBroker, Pages, lease, serving

LOST = "b" * 32


class Site:
    """The service with one server that the hub knows and one that it doesn't."""

    def __init__(self, pages: Pages, ledger: Ledger, ended: list[tuple[str, str]]) -> None:
        self.pages, self.ledger, self.ended = pages, ledger, ended

    async def post(self, token: str, **form: str) -> tuple[int, str]:
        """Status, and the text or where it leads."""
        head = {"Authorization": f"token {token}"}
        url = f"{self.pages.url}admin/unknown/"
        async with self.pages.client.post(url, data=form, headers=head, allow_redirects=False) as answer:
            return answer.status, answer.headers.get("Location") or await answer.text()


@pytest.fixture
async def site(tmp_path: Path, times: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    usual = FakeBroker.status

    def status(self: FakeBroker) -> dict[str, Any]:
        known = {**lease("a" * 32, "anna", "GPU-0"), "unknown_to_hub": False}
        lost = {**lease(LOST, "<bob>", "GPU-1"), "unknown_to_hub": True}
        return {**usual(self), "leases": [known, lost]}

    monkeypatch.setattr(FakeBroker, "status", status)
    ledger: Ledger = times.make_ledger(tmp_path / "ledger")
    await ledger.open()
    ended: list[tuple[str, str]] = []

    async def end(lease_id: str, author: str) -> None:
        ended.append((lease_id, author))

    async with serving(unknown_pages(Audit(ledger, clock=times.now), end)) as pages:
        yield Site(pages, ledger, ended)
    await ledger.close()


async def test_an_admin_is_asked_back_and_ends_the_server(site: Site) -> None:
    status, _, text = await site.pages.get("admin/unknown/", "noether-token")
    assert status == 200
    assert "&lt;bob&gt;" in text
    assert f'name="lease" value="{LOST}"' in text
    assert "a" * 32 not in text
    status, text = await site.post("noether-token", do="end", lease=LOST)
    assert (status, site.ended) == (200, [])
    assert "End the server of &lt;bob&gt;?" in text
    status, where = await site.post("noether-token", do="end", lease=LOST, confirmed="yes")
    assert (status, where.endswith("/admin/unknown/"), site.ended) == (303, True, [(LOST, "noether")])
    ((_, write),) = await site.ledger.audited(Search())
    assert (write.author, write.via, write.action, write.subject, write.result) == (
        "noether", "page", "end", "user:<bob>", Result.DONE,
    )  # fmt: skip


async def test_one_that_the_hub_knows_is_not_ended_here(site: Site) -> None:
    status, _ = await site.post("noether-token", do="end", lease="a" * 32, confirmed="yes")
    assert (status, site.ended) == (409, [])
    assert (await site.post("noether-token", do="burn"))[0] == 400


@pytest.mark.parametrize(
    ("token", "reads", "writes"),
    [("monitor-token", 200, 403), ("anna-token", 403, 403), ("dean-token", 403, 403)],
)
async def test_who_may_see_it_and_who_may_end(site: Site, token: str, reads: int, writes: int) -> None:
    status, _, text = await site.pages.get("admin/unknown/", token)
    assert (status, f'value="{LOST}"' in text) == (reads, False)
    status, _ = await site.post(token, do="end", lease=LOST, confirmed="yes")
    assert (status, site.ended) == (writes, [])
