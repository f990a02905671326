"""How pytest-xdist gives tests to processes: group by group."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from tests.groups import group_of


class GroupScheduling(LoadScopeScheduling):
    """Scopes are the groups of tests/groups.py.

    Marks of xdist_group would say the same, but pytest-xdist 3.8 overlooks them under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
