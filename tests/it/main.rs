//! What muster does, seen from outside its rooms.

#![cfg(test)]

mod access;
mod agent_session;
mod bits;
mod cli;
mod demo;
mod fleet;
mod floors;
mod gate;
mod guests;
mod house;
mod labels;
mod machine;
mod postgres;
mod register;
mod routes;
mod sandbox;
mod store;
mod wit;
