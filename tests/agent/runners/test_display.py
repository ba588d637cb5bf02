"""Rich results, figures and the records that older material emits."""

from __future__ import annotations

import base64
import importlib.util
import sys

from tests.agent.runners.driver import KernelTestCase

PNG = base64.b64encode(b"\x89PNG").decode()


class DisplayTests(KernelTestCase):
    def test_rich_representations(self) -> None:
        """An object's text is echoed, followed by the richest form it has."""
        kernel = self.kernel()
        for method, value, expected in (
            ("_repr_html_", "'<b>x</b>'", ["html", "<b>x</b>"]),
            ("_repr_svg_", "'<svg/>'", ["media", ["image/svg+xml", "<svg/>"]]),
            ("_repr_png_", "b'\\x89PNG'", ["media", ["image/png", f"data:image/png;base64,{PNG}"]]),
            ("_repr_png_", f"('{PNG}', {{}})", ["media", ["image/png", f"data:image/png;base64,{PNG}"]]),
            ("_repr_jpeg_", "b'\\x89PNG'", ["media", ["image/jpeg", f"data:image/jpeg;base64,{PNG}"]]),
            ("_repr_latex_", "'$x$'", ["media", ["text/latex", "$x$"]]),
            ("_repr_markdown_", "'# x'", ["media", ["text/markdown", "# x"]]),
            ("_repr_json_", "{'a': 1}", ["media", ["application/json", '{"a": 1}']]),
        ):
            kernel.run(f"class A:\n    def __repr__(self): return 'text'\n    def {method}(self): return {value}\nA()")
            self.assertEqual(kernel.texts(), [["stdout", "text\n"], expected])
        kernel.run(
            "class B:\n    def __repr__(self): return 't'\n    def _repr_mimebundle_(self, include=None, exclude=None): return {'text/plain': 't', 'text/html': '<i>'}\nB()"
        )
        self.assertEqual(kernel.texts(), [["stdout", "t\n"], ["html", "<i>"]])

    def test_only_what_is_really_there(self) -> None:
        """Classes, objects that answer to every name, and methods that give nothing show text only."""
        kernel = self.kernel()
        kernel.run("class A:\n    def _repr_html_(self): return None\n    def __repr__(self): return 'a'\nA()")
        self.assertEqual(kernel.texts(), [["stdout", "a\n"]])
        kernel.run(
            "class B:\n    def __getattr__(self, name): return lambda *a, **k: 'x'\n    def __repr__(self): return 'b'\nB()"
        )
        self.assertEqual(kernel.texts(), [["stdout", "b\n"]])
        kernel.run("A")
        self.assertEqual(kernel.texts(), [["stdout", "<class '__main__.A'>\n"]])

    def test_order_among_text(self) -> None:
        """A medium stands where it was shown."""
        kernel = self.kernel()
        kernel.run(
            "import sys\nfor i in range(5):\n    print(i, end='')\n    _sorna_emit(('html', str(i)))\n    print(i, file=sys.stderr)"
        )
        expected = []
        for number in range(5):
            expected += [["stdout", str(number)], ["html", str(number)], ["stderr", f"{number}\n"]]
        self.assertEqual(kernel.texts(), expected)

    def test_records_of_the_era(self) -> None:
        """The two names in ``builtins`` that kernels have always had work as they did."""
        kernel = self.kernel()
        kernel.run("_sorna_media.append(('image/svg+xml', '<svg/>'))\nprint('x')")
        self.assertEqual(kernel.texts(), [["stdout", "x\n"], ["media", ["image/svg+xml", "<svg/>"]]])
        kernel.run(
            "from collections import namedtuple\n"
            "M = namedtuple('M', 'type data'); H = namedtuple('H', 'html')\n"
            "_sorna_emit(M('application/x-sorna-drawing', 'YWJj')); _sorna_emit(H('<p>'))\n"
            "_sorna_emit(('log', ('info', '2017', 'me', 'text')))"
        )
        self.assertEqual(
            kernel.texts(),
            [
                ["media", ["application/x-sorna-drawing", "YWJj"]],
                ["html", "<p>"],
                ["log", ["info", "2017", "me", "text"]],
            ],
        )
        self.assertEqual(kernel.run("_sorna_emit(5)")["exceptions"][0]["name"], "TypeError")

    def test_large_medium(self) -> None:
        """A medium over 8 MiB is replaced by a sentence; one over the credit still passes."""
        kernel = self.kernel()
        kernel.run("_sorna_emit(('html', 'x' * 9_000_000))")
        self.assertEqual(kernel.texts(), [["stderr", "A result is not shown because it is larger than 8 MiB.\n"]])
        kernel.run("_sorna_emit(('html', 'x' * 3_000_000))")
        self.assertEqual([len(text) for _kind, text in kernel.texts()], [3_000_000])


class MatplotlibTests(KernelTestCase):
    def setUp(self) -> None:
        if importlib.util.find_spec("matplotlib") is None:
            self.skipTest("matplotlib is not installed")

    def test_figures(self) -> None:
        """Figures are shown by ``show`` and at the end of a run, once, and closed."""
        kernel = self.kernel()
        kernel.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint('after')", timeout=60)
        self.assertEqual(kernel.stream("stderr"), "")
        (kind, medium), after = kernel.texts()
        self.assertEqual((kind, medium[0], after), ("media", "image/png", ["stdout", "after\n"]))
        self.assertTrue(base64.b64decode(medium[1].partition(",")[2]).startswith(b"\x89PNG"))
        kernel.run("f1 = plt.figure(); f2 = plt.figure()")
        self.assertEqual([kind for kind, _value in kernel.texts()], ["media", "media"])
        kernel.run("plt.get_fignums()")
        self.assertEqual(kernel.texts(), [["stdout", "[]\n"]])
        kernel.run(
            "import sys; any('Finder' in type(f).__name__ and 'yplot' in type(f).__name__ for f in sys.meta_path)"
        )
        self.assertEqual(kernel.stream("stdout"), "False\n")

    def test_nothing_is_imported_for_it(self) -> None:
        """A session that does not plot does not pay for plotting."""
        loaded = [name for name in ("numpy", "matplotlib", "pandas") if name in sys.modules]
        kernel = self.kernel()
        kernel.run("1")
        kernel.run("import sys; [n for n in ('numpy', 'matplotlib', 'pandas') if n in sys.modules]")
        self.assertEqual(kernel.stream("stdout"), f"{loaded}\n")
