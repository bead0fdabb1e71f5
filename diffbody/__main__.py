from diffbody.cli import main

main()
