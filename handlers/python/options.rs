//! The options of Python applications, as `lurcher run` and the extension module both know them.

use lurcher::launcher::Opt;

/// What the handler is called in orders.
pub(crate) const NAME: &str = "python";

/// Its options.
pub(crate) const OPTIONS: &[Opt] = &[
    Opt {
        name: "python",
        value: "PROGRAM",
        help: "The interpreter [that of VIRTUAL_ENV, else of .venv in the working directory, else python3 of PATH]",
        repeat: false,
    },
    Opt {
        name: "sendfile-base",
        value: "DIR",
        help: "The server's setting `sendfile.base`: it sends files below that applications give to wsgi.file_wrapper itself",
        repeat: false,
    },
];
