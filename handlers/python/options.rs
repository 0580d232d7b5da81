//! The options of Python applications, as `lurcher run` and the extension module both know them. What they mean is said in
//! docs/PYTHON.md.

use lurcher::launcher::Opt;

/// What the handler is called in orders.
pub(crate) const NAME: &str = "python";

const fn one(name: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        name,
        value,
        help,
        repeat: false,
    }
}

const fn many(name: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        repeat: true,
        ..one(name, value, help)
    }
}

/// Its options.
pub(crate) const OPTIONS: &[Opt] = &[
    one(
        "python",
        "PROGRAM",
        "The interpreter, or the folder of a virtual environment [default: that of VIRTUAL_ENV, else of .venv in the app's folder or the working directory, else the one that this program was installed for, else python3 of PATH]",
    ),
    one(
        "app-dir",
        "DIR",
        "Where modules are looked for first [default: the working directory of workers]",
    ),
    many(
        "mount",
        "PATH=MODULE:NAME[,KEY=VALUE...]",
        "An application below a path, as /blog=blog:app; HOST/PATH is one host's only. With group=NAME it is in processes of its own, together with the others of that group, which may have workers=, threads=, io= and python= of their own; may be repeated",
    ),
    many(
        "host",
        "NAME[/PATH]=MODULE:NAME[,KEY=VALUE...]",
        "An application for a host, as shop.example.com=shop:app or *.example.com=all:app; may be repeated",
    ),
    one(
        "factory",
        "",
        "What is named is not the application but a function that makes it",
    ),
    one(
        "interface",
        "auto|wsgi|asgi",
        "What applications speak [default: auto, each as it looks]",
    ),
    one(
        "io",
        "standard|gevent|eventlet",
        "Threads, or greenlets with everything patched before the application is loaded, for WSGI [default: standard]",
    ),
    one(
        "loop",
        "auto|asyncio|uvloop",
        "The event loop of ASGI applications [default: auto, uvloop where it is installed]",
    ),
    one(
        "lifespan",
        "auto|on|off",
        "Whether ASGI applications are told of start and end [default: auto, unless they refuse it]",
    ),
    many(
        "middleware",
        "MODULE:NAME",
        "Wrap applications in what this makes of them; the first is outermost; may be repeated",
    ),
    one(
        "preload",
        "",
        "Load applications once and fork the workers from there, which saves memory",
    ),
    one(
        "early-uploads",
        "",
        "Give applications uploads that the server stores when they begin, to be read while they arrive. Behind a Mongrel2 this program has to be the only one that receives them, and its upload.temp_store has to be known (--upload-store)",
    ),
    one(
        "timeout",
        "SECONDS",
        "A worker in which a WSGI request gets no further for so long, or the event loop stands still, is killed and replaced [default: never]",
    ),
    one(
        "log-config",
        "FILE",
        "Configure Python's logging from a .json, .toml or .ini file",
    ),
    one(
        "sendfile-base",
        "DIR",
        "The server's setting sendfile.base: files below that an application gives to wsgi.file_wrapper are sent by the server itself [default: none are]",
    ),
];
