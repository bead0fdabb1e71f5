from diffbody import main

main()
