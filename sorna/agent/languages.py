"""The language table: how every runtime queries, builds and executes, and what it needs of its host.

Declarative: one row per canonical name of ``model/runtime.py``. Which rows an agent offers is found out by
:mod:`sorna.agent.detection`; how a row is used inside a kernel is the business of ``runners/commands.py``. Scripts are for
bash, run in the working directory inside the sandbox, and never contain a value of the user: code comes as the file
``$SORNA_SOURCE``. ``$SORNA_TOOL`` is the absolute path of the row's first tool, ``$SORNA_MEMORY_MIB`` the memory limit.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from attrs import field, frozen

from sorna.agent.runners.language import Language
from sorna.model.limits import MIB, Limits
from sorna.model.service import Service


@frozen
class Tool:
    """A program that a runtime needs.

    :ivar names: file names it may have, the best first.
    :ivar prefix: arguments that make it print the directory it was installed to (its real place behind the shim of a
        toolchain manager); without them the directory above its ``bin``.
    :ivar search: more directories to look in, as globs, ``~`` being the agent's home.
    :ivar home: variable that is to hold the directory it was installed to.
    """

    names: tuple[str, ...]
    prefix: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    home: str | None = None


@frozen
class Application:
    """A server that runs inside a kernel: started when somebody first connects with it, then kept, one of each per kernel.

    :ivar protocol: ``http`` or ``tcp``.
    :ivar port: where it listens, on the kernel's own loopback; ``$SORNA_PORT`` for the script.
    :ivar script: starts it; for bash like those of runtimes, in the working directory. ``"$@"`` are the options a client chose.
    :ivar tool: a program of the system that it needs; None when the runtime's own tool does. ``$SORNA_APP_TOOL`` is it.
    :ivar modules: Python modules the agent's interpreter for kernels must have.
    :ivar arguments: options that clients may choose.
    :ivar environ: variables that clients may choose.
    :ivar patience: seconds after its start within which it listens.
    """

    name: str
    protocol: str
    port: int
    script: str
    tool: Tool | None = None
    modules: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environ: tuple[str, ...] = ()
    patience: float = 10.0

    @property
    def service(self) -> Service:
        """It, as clients see it."""
        return Service(self.name, self.protocol, self.port, self.arguments, self.environ)


@frozen
class Runtime:
    """A row: what travels into the kernel, and what the agent has to know beside it.

    :ivar stack: which warm zygote kernels of it are forked from.
    :ivar modules: Python modules the agent's interpreter for kernels must have.
    :ivar gpu: whether it is for hosts with a GPU.
    :ivar defaults: limits that replace the general defaults where nobody asked for something else.
    :ivar applications: what may run beside the user's code, where this host has what it needs.
    """

    language: Language
    stack: str = "commands"
    tools: tuple[Tool, ...] = ()
    modules: tuple[str, ...] = ()
    gpu: bool = False
    environ: Mapping[str, str] = field(factory=dict)
    defaults: Mapping[str, int] = field(factory=dict)
    applications: tuple[Application, ...] = ()

    @property
    def name(self) -> str:
        """The canonical name."""
        return self.language.name

    def adapt(self, limits: Limits) -> Limits:
        """Replace what is still the general default by this runtime's own."""
        general = Limits()
        changes = {
            name: value for name, value in self.defaults.items() if getattr(limits, name) == getattr(general, name)
        }
        return attrs.evolve(limits, **changes)


_MAKEFILE = "[ -e Makefile ] || [ -e makefile ] || [ -e GNUmakefile ]"
_MAKE_OR_NOTHING = f"if {_MAKEFILE}; then exec make; fi\n"
_RUN_BINARY = """\
for program in ./main ./a.out; do
  if [ -f "$program" ] && [ -x "$program" ]; then exec "$program"; fi
done
echo "There is no program ./main or ./a.out; was it built?" >&2
exit 127
"""


def _run_first(command: str, *names: str) -> str:
    """Give a script that runs a command on the first of some files that exists."""
    tests = "".join(f'if [ -e {name} ]; then exec {command} {name} "$@"; fi\n' for name in names)
    return f'{tests}echo "There is no {" or ".join(names)} in the working directory." >&2\nexit 127\n'


def _compile_all(command: str, patterns: str, what: str, libraries: str) -> str:
    return f"""\
if {_MAKEFILE}; then exec make; fi
shopt -s globstar nullglob
sources=({patterns})
if [ ${{#sources[@]}} -eq 0 ]; then
  echo "There is no {what} source file in the working directory." >&2
  exit 1
fi
exec {command} -o main "${{sources[@]}}" {libraries}
"""


def _compile_one(command: str, libraries: str = "") -> str:
    """Give a query script of a compiler: messages name the file without its temporary directory."""
    return f"""\
work=$PWD
cd "$SORNA_SOURCE_DIR" && {command} "${{SORNA_SOURCE##*/}}" {libraries} || exit
cd "$work" && exec "$SORNA_SOURCE_DIR/main"
"""


# Programs of before C99 leave out types and declarations; newer compilers make errors of that.
_GCC = "gcc -Wno-error=implicit-int -Wno-error=implicit-function-declaration"
_C_LIBRARIES = "-lm -lpthread"
_CC = Tool(("gcc",))
_JAVAC = "javac -J-XX:TieredStopAtLevel=1 -J-XX:+UseSerialGC -J-Xmx${heap}m -encoding UTF-8"
_JAVA = "java -XX:+UseSerialGC -Xshare:auto -Xmx${heap}m"
_HEAP = "heap=$(( ${SORNA_MEMORY_MIB:-512} * 6 / 10 ))\n"
_JAVA_QUERY = (
    _HEAP
    + r"""code=$(sed -e 's://.*$::' "$SORNA_SOURCE")
public=$(grep -oE 'public[[:space:]]+((final|abstract|strictfp|sealed)[[:space:]]+)*(class|record|enum|interface)[[:space:]]+[[:alnum:]_$]+' <<<"$code" \
  | awk 'NR == 1 { print $NF }')
main=$(grep -oE '(class|record|enum|interface)[[:space:]]+[[:alnum:]_$]+|void[[:space:]]+main[[:space:]]*\(' <<<"$code" \
  | awk '/^void/ { print name; exit } { name = $NF }')
package=$(sed -nE 's/^[[:space:]]*package[[:space:]]+([[:alnum:]_.]+)[[:space:]]*;.*/\1./p;T;q' "$SORNA_SOURCE")
main=${main:-$public}
if [ -z "$main" ]; then
  echo "There is no class with a main method in the code." >&2
  exit 1
fi
work=$PWD
cd "$SORNA_SOURCE_DIR" || exit
file=${public:-$main}.java
[ "$file" = "${SORNA_SOURCE##*/}" ] || cp "$SORNA_SOURCE" "$file"
"""
    + f'{_JAVAC} -cp "$work" -d classes "$file" || exit\n'
    + f'cd "$work" && exec {_JAVA} -cp "$SORNA_SOURCE_DIR/classes:$work" "$package$main"\n'
)
_JAVA_BUILD = (
    _HEAP
    + f"""\
if {_MAKEFILE}; then exec make; fi
shopt -s globstar nullglob
sources=(**/*.java)
if [ ${{#sources[@]}} -eq 0 ]; then
  echo "There is no Java source file in the working directory." >&2
  exit 1
fi
exec {_JAVAC} "${{sources[@]}}"
"""
)
_JAVA_EXEC = (
    _HEAP
    + f"""\
for name in main/Main Main main; do
  if [ -e "$name.class" ]; then exec {_JAVA} -cp . "${{name//\\//.}}"; fi
done
echo "There is no class main.Main or Main; was it built?" >&2
exit 127
"""
)
# CommonJS code sees the working directory as its own, so that require('./file') finds what was uploaded.
_NODE_QUERY = """\
if grep -qE '^[[:space:]]*(import[[:space:]{*"'"'"']|export[[:space:]{*])' "$SORNA_SOURCE"; then
  cp "$SORNA_SOURCE" "$SORNA_SOURCE_DIR/main.mjs" && exec "$SORNA_TOOL" "$SORNA_SOURCE_DIR/main.mjs"
fi
exec "$SORNA_TOOL" -e '
const source = require("fs").readFileSync(process.env.SORNA_SOURCE, "utf8");
require("vm").runInThisContext(source, {filename: "main.js"});'
"""
_NODE_EXEC = """\
if [ ! -e main.js ] && [ ! -e main.mjs ] && [ -e package.json ]; then exec "$SORNA_TOOL" .; fi
""" + _run_first('"$SORNA_TOOL"', "main.js", "main.mjs", "index.js")
_PHP = '"$SORNA_TOOL" -d display_errors=stderr -d html_errors=0 -d log_errors=0'
_PHP_QUERY = f"""\
if ! grep -q '<?' "$SORNA_SOURCE"; then sed -i '1s/^/<?php /' "$SORNA_SOURCE"; fi
exec {_PHP} "$SORNA_SOURCE"
"""
_GO_BUILD = f"""\
if {_MAKEFILE}; then exec make; fi
if [ -e go.mod ]; then exec "$SORNA_TOOL" build -o main .; fi
shopt -s nullglob
sources=()
for name in *.go; do case $name in *_test.go) ;; *) sources+=("$name") ;; esac; done
if [ ${{#sources[@]}} -eq 0 ]; then
  echo "There is no Go source file in the working directory." >&2
  exit 1
fi
exec "$SORNA_TOOL" build -o main "${{sources[@]}}"
"""
_RUST_BUILD = f"""\
if {_MAKEFILE}; then exec make; fi
if [ -e Cargo.toml ]; then exec cargo build --offline --quiet; fi
source=main.rs
[ -e "$source" ] || source=src/main.rs
exec "$SORNA_TOOL" --edition 2021 -o main "$source"
"""
_RUST_EXEC = (
    """\
if [ -e Cargo.toml ]; then exec cargo run --offline --quiet; fi
"""
    + _RUN_BINARY
)
_HASKELL_BUILD = f"""\
if {_MAKEFILE}; then exec make; fi
source=main.hs
[ -e "$source" ] || source=Main.hs
exec ghc -v0 -outputdir .build -o main "$source"
"""
_PYTHON_BUILD = """\
if [ ! -e setup.py ]; then exit 0; fi
if "$SORNA_TOOL" -c 'import site, sys; sys.exit(not site.ENABLE_USER_SITE)'; then
  exec "$SORNA_TOOL" setup.py --quiet develop --user
fi
exec "$SORNA_TOOL" setup.py --quiet build_ext --inplace
"""
_ROOMY = {"memory": 1024 * MIB}


def _python3(name: str, *modules: str, gpu: bool = False) -> Runtime:
    language = Language(
        name=name,
        repl=True,
        source="main.py",
        query="",
        build=_PYTHON_BUILD,
        exec=_run_first('"$SORNA_TOOL"', "main.py"),
    )
    defaults = {"memory": 2048 * MIB} if modules else {}
    return Runtime(language, stack="python3", modules=modules, gpu=gpu, defaults=defaults)


def _interpreted(name: str, tool: Tool, command: str, *names: str, query: str | None = None) -> Runtime:
    """Make the row of an interpreter that takes a file."""
    language = Language(
        name=name,
        repl=False,
        source=names[0],
        query=query or f'exec {command} "$SORNA_SOURCE"\n',
        build=_MAKE_OR_NOTHING,
        exec=_run_first(command, *names),
    )
    return Runtime(language, tools=(tool,))


_PYTHON2 = Tool(
    ("python2.7", "python2"),
    prefix=("-c", "import sys; print(sys.prefix)"),
    search=("~/.pyenv/versions/2.7*/bin",),
)
_NODE = Tool(("node", "nodejs"), prefix=("-p", "require('path').resolve(process.execPath, '../..')"))
_PHP7 = Tool(("php", "php8.4", "php8.3", "php8.2", "php7.4"))

_ROWS = (
    _python3("python3"),
    _python3("python3-torch", "torch"),
    _python3("python3-torch-gpu", "torch", gpu=True),
    _python3("python3-tensorflow", "tensorflow"),
    _python3("python3-tensorflow-gpu", "tensorflow", gpu=True),
    _python3("python3-caffe", "caffe"),
    _python3("python3-theano", "theano"),
    _interpreted("python2", _PYTHON2, '"$SORNA_TOOL"', "main.py"),
    _interpreted("r3", Tool(("Rscript",)), '"$SORNA_TOOL" --no-save --no-restore', "main.R", "main.r"),
    _interpreted("php5", Tool(("php5.6", "php5")), _PHP, "main.php", "index.php", query=_PHP_QUERY),
    _interpreted("php7", _PHP7, _PHP, "main.php", "index.php", query=_PHP_QUERY),
    _interpreted("lua5", Tool(("lua5.4", "lua5.3", "lua")), '"$SORNA_TOOL"', "main.lua"),
    _interpreted("ruby", Tool(("ruby",)), '"$SORNA_TOOL"', "main.rb"),
    _interpreted(
        "julia",
        Tool(("julia",), prefix=("--startup-file=no", "-e", "print(dirname(Sys.BINDIR))")),
        '"$SORNA_TOOL" --startup-file=no --history-file=no',
        "main.jl",
    ),
    _interpreted(
        "octave4", Tool(("octave-cli", "octave")), '"$SORNA_TOOL" --no-init-file --no-history --quiet', "main.m"
    ),
    Runtime(
        Language("nodejs6", False, "main.js", _NODE_QUERY, _MAKE_OR_NOTHING, _NODE_EXEC),
        tools=(_NODE,),
    ),
    Runtime(
        Language(
            "git", False, "main.sh", 'exec bash "$SORNA_SOURCE"\n', _MAKE_OR_NOTHING, _run_first("bash", "main.sh")
        ),
        tools=(Tool(("git",)), Tool(("bash",))),
    ),
    Runtime(
        Language(
            "c",
            False,
            "main.c",
            _compile_one(f'{_GCC} -I"$work" -o main', _C_LIBRARIES),
            _compile_all(_GCC, "**/*.c", "C", _C_LIBRARIES),
            _RUN_BINARY,
        ),
        tools=(_CC,),
    ),
    Runtime(
        Language(
            "cpp",
            False,
            "main.cpp",
            _compile_one('g++ -I"$work" -o main', _C_LIBRARIES),
            _compile_all("g++", "**/*.cpp **/*.cc **/*.cxx", "C++", _C_LIBRARIES),
            _RUN_BINARY,
        ),
        tools=(Tool(("g++",)),),
    ),
    Runtime(
        Language("java", False, "Main.java", _JAVA_QUERY, _JAVA_BUILD, _JAVA_EXEC),
        tools=(Tool(("javac",), home="JAVA_HOME"), Tool(("java",))),
        defaults=_ROOMY,
    ),
    Runtime(
        Language("go", False, "main.go", _compile_one('"$SORNA_TOOL" build -o main'), _GO_BUILD, _RUN_BINARY),
        tools=(Tool(("go",), prefix=("env", "GOROOT")),),
        environ={"GOFLAGS": "-buildvcs=false", "GOTOOLCHAIN": "local", "GOTELEMETRY": "off"},
        defaults=_ROOMY,
    ),
    Runtime(
        Language(
            "rust",
            False,
            "main.rs",
            _compile_one('"$SORNA_TOOL" --edition 2021 -o main'),
            _RUST_BUILD,
            _RUST_EXEC,
        ),
        tools=(Tool(("rustc",), prefix=("--print", "sysroot")), _CC),
        defaults=_ROOMY,
    ),
    Runtime(
        Language("haskell", False, "main.hs", 'exec runghc "$SORNA_SOURCE"\n', _HASKELL_BUILD, _RUN_BINARY),
        tools=(Tool(("ghc",)), Tool(("runghc",)), _CC),
        defaults=_ROOMY,
    ),
)

# The working directory for a browser. It needs nothing but an interpreter, which nearly every host has. Connections are kept
# where the interpreter knows how: each one that is not costs the client a request.
_FILES = Application(
    name="files",
    protocol="http",
    port=8009,
    script="""\
if "$SORNA_APP_TOOL" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then set -- --protocol HTTP/1.1 "$@"; fi
exec "$SORNA_APP_TOOL" -m http.server --bind 127.0.0.1 "$@" "$SORNA_PORT"
""",
    tool=Tool(("python3",)),
    arguments=("--directory",),
)
# Who may connect has shown a keypair, and nobody else can: a password of its own would only be in the way.
_JUPYTER = Application(
    name="jupyter",
    protocol="http",
    port=8888,
    script=(
        'exec "$SORNA_APP_TOOL" -m jupyter_server --no-browser --ip=127.0.0.1 --port="$SORNA_PORT" --port-retries=0 '
        "--IdentityProvider.token= --ServerApp.password= --ServerApp.allow_remote_access=True "
        '--ServerApp.root_dir="$HOME" "$@"\n'
    ),
    modules=("jupyter_server", "ipykernel"),
    arguments=("--ServerApp.base_url",),
    patience=60.0,
)
# The repositories of the working directory, to clone from and push to.
_GIT = Application(
    name="git",
    protocol="tcp",
    port=9418,
    script=(
        'exec "$SORNA_APP_TOOL" daemon --reuseaddr --listen=127.0.0.1 --port="$SORNA_PORT" --export-all --enable=receive-pack '
        '--informative-errors --base-path="$HOME" "$HOME"\n'
    ),
    tool=Tool(("git",)),
)


def _with_applications(row: Runtime) -> Runtime:
    if row.stack == "python3":
        own = attrs.evolve(_FILES, tool=None)
        return attrs.evolve(row, applications=(own, _JUPYTER, _GIT))
    return attrs.evolve(row, applications=(_FILES, _GIT))


RUNTIMES: Mapping[str, Runtime] = {row.name: _with_applications(row) for row in _ROWS}
