//! The pages, one file for each part of the navigation. In each, functions that turn values into
//! HTML stand apart from the handlers that fetch the values. No page decides who may do what, and
//! none holds a word that people read: those are in [`super::i18n`].

pub mod certificates;
pub mod home;
pub mod login;
pub mod notices;
pub mod operations;
pub mod operators;
pub mod recovery;
pub mod security;
