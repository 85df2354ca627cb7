"""Strategies by name, and measurements as lines of JSON."""

import dataclasses

import pytest

from rematpass.errors import MeasureError
from rematpass.report.measurement import Measurement, Strategy, parse_list, resolve, unique

NAMES = [
    "eager",
    "eager+checkpoint",
    "inductor",
    "inductor+checkpoint",
    "inductor@0.2",
    "remat@0.5",
    "remat@64MiB",
    "remat+checkpoint@0",
]


class TestStrategy:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_name_survives_parsing(self, name):
        assert Strategy.parse(name).name == name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("egaer", "'egaer' is no strategy; did you mean eager? Valid are eager, eager+checkpoint, inductor"),
            ("inductor+", "'inductor+' is no strategy"),
            ("inductor+offload", "'inductor+offload' is no strategy"),
            ("eager@0.5", "inductor may have a budget, as in inductor@0.5; remat must have one; eager has none"),
            ("remat", "'remat': inductor may have a budget, as in inductor@0.5; remat must have one; eager has none"),
            ("inductor@", "'inductor@': inductor may have a budget"),
            ("inductor@2", "'inductor@2': torch's activation_memory_budget is a number from 0 to 1"),
            ("inductor@8GiB", "'inductor@8GiB': torch's activation_memory_budget is a number from 0 to 1"),
            ("remat@16", "'remat@16': memory_budget='16': a number without a unit; did you mean 16GiB?"),
        ],
    )
    def test_an_invalid_name_is_refused(self, name, message):
        with pytest.raises(MeasureError) as raised:
            Strategy.parse(name)
        assert message in str(raised.value)

    def test_a_budget_is_a_fraction_or_bytes(self):
        found = {name: (Strategy.parse(name).fraction, Strategy.parse(name).nbytes) for name in NAMES}
        assert found["inductor"] == (1.0, None)
        assert found["inductor@0.2"] == (0.2, None)
        assert found["remat@0.5"] == (0.5, None)
        assert found["remat@64MiB"] == (None, 64 * 2**20)
        assert found["eager"] == (None, None)

    def test_the_peer_of_a_budget_does_not_affect_equality(self):
        named, plain = Strategy("remat", budget="7B", like="eager"), Strategy("remat", budget="7B")
        assert unique([named, plain]) == [plain]

    def test_lists_are_parsed(self):
        assert [s.name for s in parse_list("eager, inductor@0.5,eager")] == ["eager", "inductor@0.5"]
        assert [s.name for s in parse_list("1,8GiB", "remat")] == ["remat@1", "remat@8GiB"]
        assert parse_list("none") == []

    def test_a_peers_peak_may_be_less_than_the_smallest_budget_of_users(self, monkeypatch):
        monkeypatch.setattr("rematpass.budget.LEAST_BUDGET_BYTES", 2**20)  # tests/conftest.py lowers it
        assert Strategy.parse("remat@262154B").nbytes == 262154
        with pytest.raises(MeasureError, match=r"'remat@262154B': .* below the smallest budget"):
            parse_list("262154B", "remat")
        with pytest.raises(MeasureError, match=r"'remat@256KiB': .* below the smallest budget"):
            Strategy.parse("remat@256KiB")


class TestMeasurement:
    FULL = Measurement(
        "llama", "remat@0", "cpu, 2 threads", "2.13.0", source="abc", peak=11, gradients=3, step_flops=23,
        eager_flops=17, forward_flops=5, gradient_error=0.0, step_ratio=(0.5, 1.0, 2.0), step_seconds=0.25, rounds=3,
    )  # fmt: skip

    def test_a_measurement_survives_json(self):
        assert Measurement.from_json(self.FULL.to_json()) == self.FULL
        assert "\n" not in self.FULL.to_json()

    def test_unknown_fields_are_ignored(self):
        text = self.FULL.to_json().replace("{", '{"of_a_later_version": 7, ', 1)
        assert Measurement.from_json(text) == self.FULL

    @pytest.mark.parametrize("text", ["", "[]", '{"model": "llama"}', '{"model": '])
    def test_an_invalid_line_is_refused(self, text):
        with pytest.raises(MeasureError, match="not a measurement"):
            Measurement.from_json(text)

    def test_derived_figures_are_computed(self):
        assert self.FULL.peak_less_gradients == 8
        assert self.FULL.recomputed_share == 6 / 5
        assert Measurement("m", "eager", "cpu", "2").peak_less_gradients is None
        assert Measurement("m", "eager", "cpu", "2").recomputed_share is None

    def test_a_row_with_an_equal_plan_has_the_figures_of_the_first(self):
        same = Measurement(
            "llama", "remat@13B", "cpu, 2 threads", "2.13.0", source="abc", budget_nbytes=13, same_plan_as="remat@0",
            planning_seconds=7.0,
        )  # fmt: skip
        first, shown = resolve([self.FULL, same])
        assert first == self.FULL
        assert (shown.strategy, shown.budget_nbytes, shown.planning_seconds) == ("remat@13B", 13, 7.0)
        assert (shown.peak, shown.step_ratio, shown.compile_seconds) == (11, (0.5, 1.0, 2.0), None)
        assert resolve([same]) == [same]

    def test_plans_are_equal_by_hash_whichever_planner_made_them(self):
        first = dataclasses.replace(self.FULL, source="a newer one", plan_hash="p")
        same, other = (
            dataclasses.replace(first, strategy=name, source="abc", plan_hash=plan, peak=None, same_plan_as="remat@0")
            for name, plan in (("remat@13B", "p"), ("remat@14B", "q"))
        )
        assert [row.peak for row in resolve([first, same, other])] == [11, 11, None]
        assert [row.peak for row in resolve([same, other], [first])] == [11, None]
