//! What muster does, seen from outside its rooms.

#![cfg(test)]

mod access;
mod agent_session;
mod bits;
mod cli;
mod compat;
mod controller;
mod demo;
mod dial;
mod fleet;
mod floors;
mod gate;
mod guests;
mod house;
mod images;
mod jenkins;
mod labels;
mod links;
mod machine;
mod poll;
mod postgres;
mod register;
mod routes;
mod sandbox;
mod ssh;
mod store;
mod wit;
