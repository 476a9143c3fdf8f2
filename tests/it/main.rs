//! What muster does, seen from outside its rooms.

#![cfg(test)]

mod access;
mod agent_session;
mod any_jenkins;
mod bits;
mod cli;
mod compat;
mod controller;
mod controller_nodes;
mod demo;
mod dial;
mod examples;
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
mod replay;
mod routes;
mod sandbox;
mod scripts;
mod ssh;
mod store;
mod wit;
