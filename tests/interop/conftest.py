"""What the tests of foreign clients share; see `interop_world`."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("interop_world", "interop_scenarios")
