//! Integration tests: floor_plan.
