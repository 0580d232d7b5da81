//! Which host and which route take a request: Mongrel2's rules, pure, no I/O.
//!
//! A [`HostTable`] finds the host by the tail of its name, a [`RouteTable`] the route by the beginning of the path and,
//! where the route has one, by a [`Pattern`] over the rest. Both can explain what they chose, for `config match`. Neither
//! decodes escapes or removes dots: the path is taken as it came, as Mongrel2 takes it.
//!
//! The oddities are kept because configurations in the world may lean on them: a short path reaches a longer route
//! (`/us` finds `/users`), a short name reaches a longer tail, and there is no dot at which a tail must begin. Two
//! differ from Mongrel2 on purpose: host names are compared without case, and IPv6 literals match.

mod host;
mod pattern;
mod places;
mod route;
mod tree;

pub use host::{HostChoice, HostTable};
pub use pattern::{Case, Pattern, PatternProblem};
pub use places::{Place, Places};
pub use route::{Reach, RouteChoice, RouteTable, split};
