"""Everything that sessions of Python do, once more with runs that go over a lane: nobody can tell the difference."""

from __future__ import annotations

from tests.agent.runners import (
    test_collected_lines,
    test_display,
    test_first_process,
    test_interaction,
    test_repl,
    test_streams,
    test_unattended,
    test_upload,
)
from tests.agent.runners.lane_driver import LaneKernel


class ReplTests(test_repl.ReplTests):
    """State, errors, ends."""

    make = LaneKernel


class InterruptTests(test_interaction.InterruptTests):
    """Interrupts."""

    make = LaneKernel


class InputTests(test_interaction.InputTests):
    """Typed lines."""

    make = LaneKernel


class CompletionTests(test_interaction.CompletionTests):
    """Completions."""

    make = LaneKernel


class ChildTests(test_interaction.ChildTests):
    """What runs start."""

    make = LaneKernel


class OrderTests(test_streams.OrderTests):
    """Two streams."""

    make = LaneKernel


class LastWordsTests(test_streams.LastWordsTests):
    """The end of the output."""

    make = LaneKernel


class BulkTests(test_streams.BulkTests):
    """Much output."""

    make = LaneKernel


class AbusedStreamTests(test_streams.AbusedStreamTests):
    """Streams that user code breaks."""

    make = LaneKernel


class CollectedOrderTests(test_collected_lines.OrderTests):
    """Programs that print in a hurry."""

    make = LaneKernel


class PromptnessTests(test_collected_lines.PromptnessTests):
    """What may not wait."""

    make = LaneKernel


class CollectedInterruptTests(test_collected_lines.InterruptTests):
    """Interrupted in a hurry."""

    make = LaneKernel


class CollectedAbuseTests(test_collected_lines.AbuseTests):
    """Broken in a hurry."""

    make = LaneKernel


class DisplayTests(test_display.DisplayTests):
    """Figures and pages."""

    make = LaneKernel


class MatplotlibTests(test_display.MatplotlibTests):
    """Figures of the library."""

    make = LaneKernel


class UnattendedTests(test_unattended.UnattendedTests):
    """Runs without anybody who types."""

    make = LaneKernel


class UploadFrameTests(test_upload.UploadFrameTests):
    """Files."""

    make = LaneKernel


class FirstProcessTests(test_first_process.FirstProcessTests):
    """As the first process of a namespace."""

    make = LaneKernel
