//! Between columns and types, and between cursors and keys.

use std::error::Error;
use std::fmt::Write as _;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::Row;
use sqlx::any::AnyRow;

use crate::limits::{ID_BYTES, NAME_BYTES_MAX, PAGE_ROWS_MAX};
use crate::store::{PageAsked, Paged, Result, StoreError};

/// A row that can not be read.
pub(super) fn corrupt(column: &str, source: impl Into<Box<dyn Error + Send + Sync>>) -> StoreError {
    StoreError::Corrupt { column: column.into(), source: source.into() }
}

/// A text that is a name or a digest.
pub(super) fn parsed<T: FromStr<Err: Error + Send + Sync + 'static>>(row: &AnyRow, column: &str) -> Result<T> {
    row.try_get::<&str, _>(column)?.parse().map_err(|error| corrupt(column, error))
}

/// A text that is a name, or nothing.
pub(super) fn parsed_if_any<T: FromStr<Err: Error + Send + Sync + 'static>>(row: &AnyRow, column: &str) -> Result<Option<T>> {
    let text = row.try_get::<Option<&str>, _>(column)?;
    text.map(|text| text.parse().map_err(|error| corrupt(column, error))).transpose()
}

/// A text that is JSON.
pub(super) fn json<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T> {
    serde_json::from_str(row.try_get::<&str, _>(column)?).map_err(|error| corrupt(column, error))
}

/// A text that is JSON, or nothing.
pub(super) fn json_if_any<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<Option<T>> {
    let text = row.try_get::<Option<&str>, _>(column)?;
    text.map(|text| serde_json::from_str(text).map_err(|error| corrupt(column, error))).transpose()
}

/// A text that is one of an enum's words.
pub(super) fn word<T: DeserializeOwned>(row: &AnyRow, column: &str) -> Result<T> {
    let text = row.try_get::<&str, _>(column)?;
    T::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(text)).map_err(|error| corrupt(column, error))
}

/// A number that is not negative, and in its type's range.
pub(super) fn number<T: TryFrom<i64, Error: Error + Send + Sync + 'static>>(row: &AnyRow, column: &str) -> Result<T> {
    T::try_from(row.try_get::<i64, _>(column)?).map_err(|error| corrupt(column, error))
}

/// A value as JSON, to be stored.
pub(super) fn to_json(column: &'static str, value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| corrupt(column, error))
}

/// An enum's word, to be stored.
pub(super) fn to_word(column: &'static str, value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        Ok(_) => Err(corrupt(column, "it is no word")),
        Err(error) => Err(corrupt(column, error)),
    }
}

/// A count, to be stored. No real one reaches the end of the range.
pub(super) fn to_bigint(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// A text that others wrote, to be stored. PostgreSQL refuses a NUL, and one must not keep a run from being ended.
pub(super) fn to_text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// `($1, $2), ($3, $4)`: the places of so many rows of so many columns.
pub(super) fn places(rows: usize, columns: usize) -> String {
    let mut text = String::new();
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 1..=columns {
            // Writing to a string does not fail.
            let _ = write!(text, "{}${}", if column == 1 { "" } else { ", " }, row * columns + column);
        }
        text.push(')');
    }
    text
}

/// Whether an insertion failed because its key is taken.
pub(super) fn is_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_unique_violation())
}

/// Whether an insertion failed because what it belongs to is not there.
pub(super) fn is_orphan(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(|error| error.is_foreign_key_violation())
}

impl PageAsked {
    /// The key after which the page begins, if the listing is sorted by a text.
    pub(super) fn text_key(&self) -> Result<Option<&str>> {
        let fits = |key: &str| (1..=NAME_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        match self.cursor.as_deref() {
            Some(key) if !fits(key) => Err(StoreError::Cursor),
            key => Ok(key),
        }
    }

    /// The key before which the page begins, if the listing is sorted by an id.
    pub(super) fn id_key(&self) -> Result<Option<&str>> {
        let fits = |key: &str| key.len() == ID_BYTES && key.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self.cursor.as_deref() {
            Some(key) if !fits(key) => Err(StoreError::Cursor),
            key => Ok(key),
        }
    }

    /// The key before which the page begins, if the listing is sorted by a falling number.
    pub(super) fn falling_key(&self) -> Result<i64> {
        let key = self.cursor.as_deref().map_or(Ok(i64::MAX), str::parse);
        key.ok().filter(|key| *key > 0).ok_or(StoreError::Cursor)
    }

    /// How many rows to read: one more than the page shows, which tells whether there is another page.
    pub(super) fn rows(&self) -> i64 {
        i64::from(self.limit.clamp(1, PAGE_ROWS_MAX)) + 1
    }

    /// The page, of up to [`PageAsked::rows`] rows.
    pub(super) fn cut<T>(&self, mut items: Vec<T>, key: impl Fn(&T) -> String) -> Paged<T> {
        let shown = self.limit.clamp(1, PAGE_ROWS_MAX) as usize;
        let more = items.len() > shown;
        items.truncate(shown);
        let next = if more { items.last().map(key) } else { None };
        Paged { items, next }
    }
}
