//! The rules, checked without a process or a socket; and the house rules.

mod lifecycle;
mod simulation;
mod tidy;
