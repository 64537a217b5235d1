//! Arguments that are one thing or several of them.

use crate::errors;
use pyo3::{exceptions::PyTypeError, prelude::*};

/// One `T`, which Python calls `kind`, or those an iterable gives; none for None.
///
/// # Errors
/// `TypeError` with the name of the argument. `InvalidInput` for an iterable that gives none: None stands for the default, and a list
/// that came out empty does not mean that.
pub(crate) fn several<T>(name: &str, kind: &str, value: Option<Bound<'_, PyAny>>) -> PyResult<Vec<T>>
where
    T: for<'a, 'py> FromPyObject<'a, 'py>,
{
    let Some(value) = value else { return Ok(Vec::new()) };
    if let Ok(one) = value.extract() {
        return Ok(vec![one]);
    }
    let refused = |wrong: &Bound<'_, PyAny>| {
        let found = wrong.get_type().qualname().map_or_else(|_| "?".to_owned(), |found| found.to_string());
        PyTypeError::new_err(format!("{name} must be a {kind} or an iterable of {kind}, not {found}"))
    };
    let items = value.try_iter().map_err(|_| refused(&value))?;
    let found: Vec<T> =
        items.map(|item| item.and_then(|item| item.extract().map_err(|_| refused(&item)))).collect::<PyResult<_>>()?;
    if found.is_empty() {
        let message = format!("{name} is empty, and so chooses nothing; None chooses what the call does by default");
        return Err(errors::invalid(value.py(), &message));
    }
    Ok(found)
}
