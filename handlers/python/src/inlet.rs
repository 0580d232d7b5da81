//! The thread that receives: gives each request to the queue of its application. It never takes the interpreter's lock.

use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use lurcher::handler::{Bodies, Connection, Event, ReplyError};
use lurcher::launcher::{BuiltIn, Handler, Target, Values};

use crate::options;
use crate::queue::{Job, Queue};
use crate::site::{Interface, Site};

/// What the receiving thread knows of the rest.
pub(crate) struct Inlet {
    pub(crate) site: Site,
    pub(crate) wsgi: Arc<Queue>,
}

/// Set once the applications are loaded, before the thread is started.
static INLET: OnceLock<Inlet> = OnceLock::new();

const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    name: options::NAME,
    about: "",
    targets: &[Target {
        scheme: "",
        form: "MODULE:NAME",
    }],
    options: options::OPTIONS,
    run,
}];

fn run(_values: &Values) -> Result<Handler, String> {
    Ok(Handler::new(serve))
}

/// Serves as the supervisor has ordered until it is told to stop and all is answered.
pub(crate) fn run_worker(inlet: Inlet) -> ExitCode {
    drop(INLET.set(inlet));
    let code = lurcher::launcher::worker(BUILT_IN);
    if let Some(inlet) = INLET.get() {
        inlet.wsgi.close();
    }
    code
}

async fn serve(mut connection: Connection) -> Result<(), ReplyError> {
    let Some(inlet) = INLET.get() else {
        return Ok(());
    };
    let mut bodies = Bodies::new();
    while let Some(request) = connection.recv().await {
        match request.into_event() {
            Event::Request(request) => inlet.push(Job {
                mount: inlet.site.find(&request).unwrap_or_default(),
                request,
                body: None,
            }),
            Event::UploadPart(part) => {
                if let Some(body) = bodies.part(&part) {
                    drop(body);
                }
            }
            Event::Disconnect(client) => bodies.gone(&client),
            _ => {}
        }
    }
    inlet.wsgi.close();
    connection.finish().await;
    Ok(())
}

impl Inlet {
    fn push(&self, job: Job) {
        let interface = self
            .site
            .mounts()
            .get(job.mount)
            .map(|mount| mount.interface);
        if interface == Some(Interface::Wsgi) {
            self.wsgi.push(job);
        }
    }
}
