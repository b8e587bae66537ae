//! Who a container's process is: names, in the words of its image's `/etc/passwd` and `/etc/group`.

/// A process's user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// The group's.
    pub gid: u32,
    /// Those of the further groups.
    pub groups: Vec<u32>,
    /// The home directory.
    pub home: String,
}

/// A name that an image does not know.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the image has no {kind} {name}: give one of its /etc/{file}, or a number")]
pub struct UserError {
    kind: &'static str,
    name: String,
    file: &'static str,
}

impl User {
    /// Who `text` is: `USER[:GROUP]`, names or numbers; nothing is root.
    ///
    /// # Errors
    /// When a name is not known.
    pub fn resolve(text: &str, passwd: &str, group: &str) -> Result<Self, UserError> {
        let (user, wanted) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let known = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, _, home, ..] = *fields.as_slice() else {
                return None;
            };
            (name == user || uid == user).then_some((
                name,
                uid.parse().ok()?,
                gid.parse().ok()?,
                home,
            ))
        });
        let (name, uid, gid, home) = match (known, user.parse()) {
            (Some(known), _) => known,
            (None, Ok(uid)) => ("", uid, 0, "/"),
            (None, Err(_)) => {
                return Err(UserError {
                    kind: "user",
                    name: user.into(),
                    file: "passwd",
                });
            }
        };
        let entries = || {
            group.lines().filter_map(|line| {
                let mut fields = line.split(':');
                let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
                Some((
                    name,
                    gid.parse::<u32>().ok()?,
                    fields.next().unwrap_or_default(),
                ))
            })
        };
        let Some(wanted) = wanted else {
            let has = |members: &str| {
                members
                    .split(',')
                    .any(|member| !name.is_empty() && member == name)
            };
            return Ok(Self {
                uid,
                gid,
                groups: entries()
                    .filter(|(_, _, members)| has(members))
                    .map(|(_, gid, _)| gid)
                    .collect(),
                home: home.into(),
            });
        };
        let named = entries()
            .find(|(name, ..)| *name == wanted)
            .map(|(_, gid, _)| gid);
        let gid = named
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| UserError {
                kind: "group",
                name: wanted.into(),
                file: "group",
            })?;
        Ok(Self {
            uid,
            gid,
            groups: Vec::new(),
            home: home.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:34:www:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nlog:x:40:sys,www\n";

    #[test]
    fn names_and_numbers_are_who_the_image_says() {
        let who = |text| {
            User::resolve(text, PASSWD, GROUP)
                .map(|user| (user.uid, user.gid, user.groups, user.home))
        };
        let www = (33, 34, vec![40], "/var/www".to_owned());
        assert_eq!(who("www"), Ok(www.clone()));
        assert_eq!(who("33"), Ok(www));
        assert_eq!(who("www:log"), Ok((33, 40, vec![], "/var/www".into())));
        assert_eq!(who("1000:7"), Ok((1000, 7, vec![], "/".into())));
        assert_eq!(who("1000"), Ok((1000, 0, vec![], "/".into())));
        assert_eq!(who(""), Ok((0, 0, vec![], "/root".into())));
        for text in ["nobody", "www:nogroup"] {
            let error = who(text).unwrap_err().to_string();
            assert!(error.contains("no"), "{error}");
        }
    }
}
