//! The task of an application: what runs it for one request, or for several that come together.
//!
//! Applications see a task and a context of their own for each request. To make them costs more than all else that a short request
//! needs, so a task goes on with the next request when the one before has never waited, and has left no trace: nothing holds the task
//! or was put on it, and the context is as it was. Nobody can tell such a task from a new one. Whoever waits has it alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyTypeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyIterator, PyString};

use super::desk::Work;
use super::hub::{Exchange, Hub};
use super::line::Line;
use super::wait::thrown;

/// A request that has come.
pub(crate) type Start = (Work, Arc<Line>);

/// What a task runs: for Python a coroutine.
#[pyclass(frozen, name = "Runner", module = "lurcher")]
pub(crate) struct Runner {
    hub: Py<Hub>,
    state: Mutex<State>,
}

struct State {
    /// What the task is for.
    starts: VecDeque<Start>,
    /// What waits.
    waiting: Option<Running>,
}

/// An application at a request.
pub(crate) struct Running {
    pub(crate) exchange: Exchange,
    pub(crate) coroutine: Py<PyAny>,
    pub(crate) steps: Py<PyIterator>,
}

/// How it has gone on.
enum Went {
    /// It waits for this future.
    Waits(Py<PyAny>),
    Ended(Option<PyErr>),
}

#[pymethods]
impl Runner {
    fn __await__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __iter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    fn __next__(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        match slf.get().resume(slf.py(), |running, py| running.step(py)) {
            Some(outcome) => Ok(outcome),
            None => Self::run(slf),
        }
    }

    fn send(slf: &Bound<'_, Self>, _value: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        returned(Self::__next__(slf)?)
    }

    #[pyo3(signature = (kind, value=None, traceback=None))]
    fn throw(
        slf: &Bound<'_, Self>,
        kind: &Bound<'_, PyAny>,
        value: Option<&Bound<'_, PyAny>>,
        traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let runner = slf.get();
        let error = thrown(kind, value, traceback);
        let outcome = runner.resume(slf.py(), |running, py| running.throw(py, &error));
        let outcome = outcome.unwrap_or_else(|| {
            // Cancelled before it was begun.
            runner.give_up(slf.py(), &error);
            None
        });
        returned(outcome)
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let waiting = self.lock().waiting.take();
        if let Some(running) = waiting {
            running.steps.call_method0(py, intern!(py, "close"))?;
        }
        Ok(())
    }

    /// What people and debuggers are shown of a task is the application's.
    #[getter]
    fn __name__(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, intern!(py, "__name__"))
            .unwrap_or_else(|| intern!(py, "Runner").clone().into_any().unbind())
    }

    #[getter]
    fn __qualname__(&self, py: Python<'_>) -> Py<PyAny> {
        self.shown(py, intern!(py, "__qualname__"))
            .unwrap_or_else(|| intern!(py, "Runner").clone().into_any().unbind())
    }

    #[getter]
    fn cr_frame(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, intern!(py, "cr_frame"))
    }

    #[getter]
    fn cr_code(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, intern!(py, "cr_code"))
    }

    #[getter]
    fn cr_await(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.shown(py, intern!(py, "cr_await"))
    }
}

impl Runner {
    pub(crate) fn new(hub: Py<Hub>, starts: VecDeque<Start>) -> Self {
        let state = State {
            starts,
            waiting: None,
        };
        Self {
            hub,
            state: Mutex::new(state),
        }
    }

    /// Goes on with the one that has waited: the future that it waits for now, or none when it has ended, and the task with it.
    /// `None`: nobody has waited.
    #[expect(
        clippy::option_option,
        reason = "the inner one is what Python is given"
    )]
    fn resume(
        &self,
        py: Python<'_>,
        go_on: impl FnOnce(&Running, Python<'_>) -> Went,
    ) -> Option<Option<Py<PyAny>>> {
        let running = self.lock().waiting.take()?;
        match go_on(&running, py) {
            Went::Waits(future) => {
                self.lock().waiting = Some(running);
                Some(Some(future))
            }
            Went::Ended(error) => {
                running.exchange.ended(py, error, true);
                Some(None)
            }
        }
    }

    /// Begins one after the other, until one waits or has left traces: then the others get tasks of their own.
    fn run(slf: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let py = slf.py();
        let runner = slf.get();
        let hub = runner.hub.bind(py);
        let looks = hub.get().looks()?;
        let mut blank = None;
        loop {
            let (start, has_more) = runner.next();
            let Some((work, line)) = start else {
                return Ok(None);
            };
            if has_more && blank.is_none() {
                blank = Blank::here(looks, py).ok();
            }
            if let Some(running) = Hub::begin_one(hub, work, line) {
                match running.step(py) {
                    Went::Waits(future) => {
                        if let Err(error) = running.exchange.waits(hub, current_task(py)?) {
                            error.print(py);
                        }
                        runner.lock().waiting = Some(running);
                        runner.pass_on(hub);
                        return Ok(Some(future));
                    }
                    Went::Ended(error) => running.exchange.ended(py, error, false),
                }
            }
            let is_blank = |blank: &Blank<'_>| blank.is_still_so(looks).unwrap_or_default();
            if has_more && !blank.as_ref().is_some_and(is_blank) {
                runner.pass_on(hub);
                return Ok(None);
            }
        }
    }

    /// The next one, and whether there are more.
    fn next(&self) -> (Option<Start>, bool) {
        let mut state = self.lock();
        let start = state.starts.pop_front();
        (start, !state.starts.is_empty())
    }

    /// Gives what is left to others.
    fn pass_on(&self, hub: &Bound<'_, Hub>) {
        let starts = std::mem::take(&mut self.lock().starts);
        if !starts.is_empty() {
            Hub::run_alone(hub, starts);
        }
    }

    /// Nobody is begun with.
    pub(crate) fn give_up(&self, py: Python<'_>, error: &PyErr) {
        let starts = std::mem::take(&mut self.lock().starts);
        for (work, line) in starts {
            let hub = self.hub.get();
            hub.could_not_start(&work.request, &line, error.value(py));
        }
    }

    fn shown(&self, py: Python<'_>, name: &Bound<'_, PyString>) -> Option<Py<PyAny>> {
        let state = self.lock();
        let coroutine = state.waiting.as_ref()?.coroutine.clone_ref(py);
        drop(state);
        coroutine.getattr(py, name).ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Calls an application.
    pub(crate) fn new(
        exchange: Exchange,
        app: &Bound<'_, PyAny>,
        scope: &Bound<'_, PyAny>,
    ) -> Result<Self, (Exchange, PyErr)> {
        let called = exchange.called(app, scope).and_then(|coroutine| {
            let steps = steps(&coroutine)?;
            Ok((coroutine.unbind(), steps.unbind()))
        });
        match called {
            Ok((coroutine, steps)) => Ok(Self {
                exchange,
                coroutine,
                steps,
            }),
            Err(error) => Err((exchange, error)),
        }
    }

    fn step(&self, py: Python<'_>) -> Went {
        match self.steps.bind(py).clone().next() {
            Some(Ok(future)) => Went::Waits(future.unbind()),
            Some(Err(error)) => Went::Ended(Some(error)),
            None => Went::Ended(None),
        }
    }

    fn throw(&self, py: Python<'_>, error: &PyErr) -> Went {
        let throw = intern!(py, "throw");
        match self.steps.call_method1(py, throw, (error.value(py),)) {
            Ok(future) => Went::Waits(future),
            Err(error) if error.is_instance_of::<pyo3::exceptions::PyStopIteration>(py) => {
                Went::Ended(None)
            }
            Err(error) => Went::Ended(Some(error)),
        }
    }
}

/// What `await` makes of it.
fn steps<'py>(awaitable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyIterator>> {
    static IS_AWAITABLE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let py = awaitable.py();
    if let Ok(steps) = awaitable.call_method0(intern!(py, "__await__")) {
        return Ok(steps.cast_into()?);
    }
    // A generator that is marked as a coroutine.
    let is_awaitable = IS_AWAITABLE.import(py, "inspect", "isawaitable")?;
    let is_awaitable = is_awaitable.call1((awaitable,))?;
    if is_awaitable.is_truthy()? {
        return Ok(awaitable.clone().cast_into()?);
    }
    let what = awaitable.get_type().name()?;
    Err(PyTypeError::new_err(format!(
        "the application returned {what}, which cannot be awaited"
    )))
}

fn current_task(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    CURRENT_TASK.import(py, "asyncio", "current_task")?.call0()
}

/// How the task and its context look before anybody has had them.
struct Blank<'py> {
    task: Bound<'py, PyAny>,
    references: Bound<'py, PyAny>,
    weak_references: Bound<'py, PyAny>,
    /// What the task refers to: its name, its callbacks, the attributes that it was given.
    referents: Bound<'py, PyAny>,
    context: Bound<'py, PyAny>,
}

impl<'py> Blank<'py> {
    fn here(looks: &Looks, py: Python<'py>) -> PyResult<Self> {
        let task = current_task(py)?;
        // It is made when it is asked for (Python 3.13), by a log for one, which is no trace.
        task.call_method0(intern!(py, "get_name"))?;
        Ok(Self {
            references: looks.references.bind(py).call1((&task,))?,
            weak_references: looks.weak_references.bind(py).call1((&task,))?,
            referents: looks.referents.bind(py).call1((&task,))?,
            context: looks.context.bind(py).call0()?,
            task,
        })
    }

    /// Whether that is so still. Small numbers are the same when they are equal; others, which are not there, count as different.
    fn is_still_so(&self, looks: &Looks) -> PyResult<bool> {
        let (task, py) = (&self.task, self.task.py());
        Ok(looks
            .references
            .bind(py)
            .call1((task,))?
            .is(&self.references)
            && looks.context.bind(py).call0()?.eq(&self.context)?
            && !task.getattr(intern!(py, "_must_cancel"))?.is_truthy()?
            && looks
                .weak_references
                .bind(py)
                .call1((task,))?
                .is(&self.weak_references)
            && looks
                .referents
                .bind(py)
                .call1((task,))?
                .eq(&self.referents)?)
    }
}

/// What tells how a task looks.
pub(crate) struct Looks {
    references: Py<PyAny>,
    weak_references: Py<PyAny>,
    referents: Py<PyAny>,
    context: Py<PyAny>,
}

impl Looks {
    pub(crate) fn new(py: Python<'_>) -> PyResult<Self> {
        let function = |module, name| py.import(module)?.getattr(name).map(Bound::unbind);
        Ok(Self {
            references: function("sys", "getrefcount")?,
            weak_references: function("weakref", "getweakrefcount")?,
            referents: function("gc", "get_referents")?,
            context: function("contextvars", "copy_context")?,
        })
    }
}

/// What a step of a coroutine gives, as its method `send` gives it.
fn returned(outcome: Option<Py<PyAny>>) -> PyResult<Py<PyAny>> {
    outcome.ok_or_else(|| pyo3::exceptions::PyStopIteration::new_err(()))
}
