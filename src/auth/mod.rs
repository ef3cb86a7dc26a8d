//! Who may do what (PROTOCOL 4 and 7): a token becomes an [`Identity`], an identity may see accounts.
