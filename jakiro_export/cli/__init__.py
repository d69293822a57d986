"""The commands jakiro-export, jakiro-build and jakiro-inspect."""
